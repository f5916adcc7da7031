"""What there is, by name: models, weights, VAEs, add-ons, licences, and where they lie. No torch."""
