"""Run quantized networks on int8 kernels: conversion, kernels and their checks."""
