/** Any JSON value. */
export type JsonValue = null | boolean | number | string | JsonValue[] | { [key: string]: JsonValue };
export type JsonObject = { [key: string]: JsonValue };

/** A value nobody may change, all the way down. */
export type DeepReadonly<T> = T extends readonly (infer E)[]
  ? readonly DeepReadonly<E>[]
  : T extends object
    ? { readonly [K in keyof T]: DeepReadonly<T[K]> }
    : T;

const NUL_OR_LONE_SURROGATE = /\u0000|[\uD800-\uDBFF](?![\uDC00-\uDFFF])|(?<![\uD800-\uDBFF])[\uDC00-\uDFFF]/;
const ALL_NUL_OR_LONE_SURROGATE = new RegExp(NUL_OR_LONE_SURROGATE.source, 'g');

/** True when Postgres would refuse the text inside JSON: it holds NUL or half of a surrogate pair. */
export function hasUnstorableText(text: string): boolean {
  return NUL_OR_LONE_SURROGATE.test(text);
}

/** Replaces NUL and lone surrogates by U+FFFD, for text that did not come through the API's own check (L3). */
export function storableText(text: string): string {
  return NUL_OR_LONE_SURROGATE.test(text) ? text.replace(ALL_NUL_OR_LONE_SURROGATE, '\uFFFD') : text;
}

/** True when both are the same JSON value; the order of keys says nothing. */
export function sameJson(one: unknown, other: unknown): boolean {
  if (typeof one !== 'object' || typeof other !== 'object' || one === null || other === null) return one === other;
  if (Array.isArray(one) !== Array.isArray(other)) return false;
  const keys = Object.keys(one);
  return (
    keys.length === Object.keys(other).length &&
    keys.every(
      (key) =>
        Object.hasOwn(other, key) &&
        sameJson((one as Record<string, unknown>)[key], (other as Record<string, unknown>)[key]),
    )
  );
}
