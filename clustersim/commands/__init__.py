"""The commands, one file each with a function `command`: from what was typed to what is printed. Nothing is computed here."""
