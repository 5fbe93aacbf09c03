"""Small programs, one question each."""
