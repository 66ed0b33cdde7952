"""The product-attach API: requests on lean connections (`pool`), and a session's products (`listing`)."""
