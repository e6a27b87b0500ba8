"""One model, one folder of images, one answer: what the verb `try` asks for and how it is built."""
