"""What PASCAL-Context looks like on disk, its classes and its body parts."""
