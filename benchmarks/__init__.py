"""What diva is measured against: other algorithms for the same work, restated on the same weights."""
