"""Messages between two nodes as bytes, the session's rules, and the transport."""
