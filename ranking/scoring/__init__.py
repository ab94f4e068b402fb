"""What is log π(y|x)? (Eq. 13, 15)"""
