"""Files and folders that are complete or absent, and what is fetched into them."""
