"""More compute for a better answer: several candidates, a critic that judges their steps, and pairs made of them."""
