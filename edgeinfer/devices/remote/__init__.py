"""Measuring on another device, over the OpenSSH client and a device-only install there."""
