"""The page that a person looks at: one HTML file with tables and plots, which needs no network."""
