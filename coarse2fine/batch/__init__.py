"""Many images: every one is attempted, what fails is named, and what is done is not done again."""
