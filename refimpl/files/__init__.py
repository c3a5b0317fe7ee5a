"""Files, written whole or not at all and read without trusting them; locks; facts about the machine."""
