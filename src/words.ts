/** Numbers of 64 bits in two words of 32. A constant, because V8 computes `2 ** 32` anew wherever it stands. */
export const TWO_32 = 2 ** 32;
