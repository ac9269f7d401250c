"""The languages that clients speak: a module for each, over what ``dialect`` says that all have in common."""
