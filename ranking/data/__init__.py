"""How do rows become preference examples?"""
