"""The network: frozen encoder, trainable adapter, frozen LLM."""
