"""What is learnt, kept and asked: the model, its file, its scores, and counting, its yardstick. numpy alone."""
