"""An admin's requests, as functions that return data. Nothing here prints or exits."""
