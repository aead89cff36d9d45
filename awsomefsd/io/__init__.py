"""Where the bytes live, and how they get there and back."""
