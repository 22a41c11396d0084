"""A pruned model learns back what it lost: losses, teachers, data, and the Trainer that joins them."""
