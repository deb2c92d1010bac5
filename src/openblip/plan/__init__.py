"""What a run needs before anything is rented: memory, time and price."""
