"""What the noxfile is made of; nothing here is shipped."""
