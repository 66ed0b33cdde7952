"""The product-attach API: lean connections (`pool`), their answers (`answer`), a session's products (`listing`)."""
