"""What other libraries need to work with the environments; each module imports its library."""
