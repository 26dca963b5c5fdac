"""What two nodes say to each other: messages as bytes, the session's rules, the transport."""
