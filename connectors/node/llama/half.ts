/** IEEE binary16 ("half") and bfloat16 conversions, the number formats of a KV cache. */

const scratchFloat = new Float32Array(1);
const scratchBits = new Uint32Array(scratchFloat.buffer);

/** Nearest binary16 (ties to even) of a number, as its 16 bits. Overflow becomes infinity. */
export function halfOfNumber(value: number): number {
  scratchFloat[0] = value;
  const bits = scratchBits[0] ?? 0;
  const sign = (bits >>> 16) & 0x8000;
  const exponent = ((bits >>> 23) & 0xff) - 127;
  const fraction = bits & 0x7fffff;
  if (exponent === 128) return sign | 0x7c00 | (fraction === 0 ? 0 : 0x200);
  if (exponent > 15) return sign | 0x7c00;
  if (exponent >= -14) return sign | roundedShift(((exponent + 15) << 23) | fraction, 13);
  if (exponent < -25) return sign;
  return sign | roundedShift(fraction | 0x800000, -1 - exponent);
}

/** `value >> shift`, rounded to nearest, ties to even. A carry into the exponent field is the right answer. */
function roundedShift(value: number, shift: number): number {
  const quotient = value >>> shift;
  const remainder = value & ((1 << shift) - 1);
  const halfway = 1 << (shift - 1);
  if (remainder > halfway || (remainder === halfway && (quotient & 1) === 1)) return quotient + 1;
  return quotient;
}

/** The number that 16 bits of binary16 stand for. */
export function numberOfHalf(bits: number): number {
  const sign = (bits & 0x8000) === 0 ? 1 : -1;
  const exponent = (bits >>> 10) & 0x1f;
  const fraction = bits & 0x3ff;
  if (exponent === 0) return sign * fraction * 2 ** -24;
  if (exponent === 31) return fraction === 0 ? sign * Number.POSITIVE_INFINITY : Number.NaN;
  return sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
}

/** The number that 16 bits of bfloat16 stand for. */
export function numberOfBfloat16(bits: number): number {
  scratchBits[0] = (bits & 0xffff) << 16;
  return scratchFloat[0] ?? 0;
}
