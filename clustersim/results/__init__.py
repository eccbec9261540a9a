"""What is kept of a run: tables, their files, and what a person reads of them."""
