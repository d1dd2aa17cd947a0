"""Files and folders that are whole or absent, and what is fetched into them."""
