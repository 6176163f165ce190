"""Questions about speed, accuracy and reliability, with kept answers."""
