"""`imece doctor`: what it looks at, and what each look has found."""
