/** The same tests at two sizes: short in `npm test`, long in `npm run test:fuzz` and `npm run test:fault`. */

export const LONG = process.env["CAIRN_TEST_LONG"] === "1";

export function scaled(short: number, long: number): number {
  return LONG ? long : short;
}
