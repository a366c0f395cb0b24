"""What compiled code is made with: the decorators, arrays by reference, loads and stores at addresses."""
