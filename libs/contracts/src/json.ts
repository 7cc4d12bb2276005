/** Any JSON value. */
export type JsonValue = null | boolean | number | string | JsonValue[] | { [key: string]: JsonValue };
export type JsonObject = { [key: string]: JsonValue };

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
