"""What `diva.serve` is made of: the OpenAI protocol, the batches, the HTTP application."""
