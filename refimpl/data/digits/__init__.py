"""The files of the embedded handwritten digits; source and licence in NOTE.txt."""
