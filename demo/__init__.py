"""The generated world of `make demo`, its run and its report."""
