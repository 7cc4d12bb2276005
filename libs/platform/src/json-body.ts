import { isUtf8 } from 'node:buffer';
import { AppError, type JsonValue, jsonFault, LIMITS } from '@holdfast/contracts';

/** How many values a body may hold: bounds the memory that parsing takes, which bytes alone do not. */
const MAX_VALUES = 1_000_000;
const QUOTE = 0x22;
const BACKSLASH = 0x5c;

function invalid(message: string): AppError {
  return new AppError('invalid', 'request.invalid-json', message);
}

/**
 * Parses a request body. Promises that what comes out can be stored and walked: bounded depth and number of values, no
 * key that could change a prototype, no NUL and no half of a surrogate pair. An empty body is `undefined`.
 *
 * @throws AppError `request.invalid-json` (kind `invalid`).
 */
export function parseJsonBody(bytes: Buffer): JsonValue | undefined {
  if (bytes.length === 0) return undefined;
  if (!isUtf8(bytes)) throw invalid('The body is not valid UTF-8.');
  const text = bytes.toString('utf8');
  checkShape(text);
  let value: JsonValue;
  try {
    value = JSON.parse(text) as JsonValue;
  } catch {
    throw invalid('The body is not valid JSON.');
  }
  const fault = jsonFault(value);
  if (fault !== undefined) throw invalid(`The body ${fault}.`);
  return value;
}

/** Bounds depth and count on the text, before anything is allocated for it. Strings are skipped at native speed. */
function checkShape(text: string): void {
  let depth = 0;
  let values = 1;
  for (let at = 0; at < text.length; at++) {
    const char = text.charCodeAt(at);
    if (char === QUOTE) {
      at = endOfString(text, at);
    } else if (char === 0x5b || char === 0x7b) {
      values++;
      if (++depth > LIMITS.jsonDepth) throw invalid(`The body is nested deeper than ${LIMITS.jsonDepth} levels.`);
    } else if (char === 0x5d || char === 0x7d) depth--;
    else if (char === 0x2c) values++;
    if (values > MAX_VALUES) throw invalid(`The body holds more than ${MAX_VALUES} values.`);
  }
}

/** Index of the quote that ends the string which begins at `start`; a string without end is refused. */
function endOfString(text: string, start: number): number {
  for (let end = text.indexOf('"', start + 1); end >= 0; end = text.indexOf('"', end + 1)) {
    let backslashes = 0;
    while (text.charCodeAt(end - 1 - backslashes) === BACKSLASH) backslashes++;
    if (backslashes % 2 === 0) return end;
  }
  throw invalid('The body is not valid JSON.');
}
