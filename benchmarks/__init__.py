"""What is measured, and on which data. Nothing here is installed."""
