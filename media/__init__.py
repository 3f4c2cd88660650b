"""Video files, pictures and TSV rows, and the frames in them."""
