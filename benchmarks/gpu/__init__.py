"""What only a GPU can show: that everything works there, and how fast it is."""
