"""What a search found, in numbers, pictures and pages."""
