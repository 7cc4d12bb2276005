import { type JsonValue, storableText } from '@holdfast/contracts';

const SUSPECT = /\\u(?:0000|d[89a-f])/i;

function clean(value: JsonValue): JsonValue {
  if (typeof value === 'string') return storableText(value);
  if (Array.isArray(value)) return value.map(clean);
  if (value === null || typeof value !== 'object') return value;
  return Object.fromEntries(Object.entries(value).map(([key, inner]) => [storableText(key), clean(inner)]));
}

/** JSON text whose every part Postgres can read, and the value it stands for: NUL and lone surrogates become U+FFFD (L3). */
export function storableJson<T>(value: T): { text: string; value: T } {
  const text = JSON.stringify(value);
  // Only an escape can hold what Postgres refuses; almost no text has one.
  if (!SUSPECT.test(text)) return { text, value };
  const cleaned = clean(value as unknown as JsonValue);
  return { text: JSON.stringify(cleaned), value: cleaned as unknown as T };
}
