"""The parts of the documentation that are written from the code: `python -m docs._generators` brings them in step."""
