"""Text that the test tokenizer learns its merges from."""

CORPUS = [
    "What number is written in the picture? The number is 1234.",
    "How many digits are there?\n\nThere are three digits; it's what you'd see, we'll count.",
    "你是书生·万象，英文名是InternVL。图中写着什么数字？",
    "user\nassistant\nsystem\nImage-1: Image-2: Add the digits of both images.\n",
] * 4
