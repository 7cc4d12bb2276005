import { AppError, LIMITS } from '@holdfast/contracts';

/** How many values one query parameter may repeat. */
const MAX_REPEATS = 100;
const MAX_VALUE_CHARS = 2_048;
const RFC3339 = /^(\d{4})-(\d{2})-(\d{2})[Tt ]\d{2}:\d{2}(?::\d{2}(\.\d{1,9})?)?(?:[Zz]|[+-]\d{2}:?\d{2})$/;
/** The years that both sides spell with four digits. */
const FIRST_MS = Date.parse('0001-01-01T00:00:00Z');
const LAST_MS = Date.parse('9999-12-31T23:59:59.999Z');

function invalid(name: string, rule: string): AppError {
  return new AppError('invalid', 'request.invalid-query', `query parameter "${name}" ${rule}`);
}

/**
 * A request's query as the SDKs write it: `k[]=a&k[]=b` or repeated `k=`, `created_at[gte]=`. Fastify's own parser
 * keeps those names literal, so this reads the raw URL. Unknown parameters are left alone (SDKs send `beta=true`).
 */
export class Query {
  private readonly params: URLSearchParams;

  constructor(url: string) {
    const mark = url.indexOf('?');
    this.params = new URLSearchParams(mark < 0 ? '' : url.slice(mark + 1));
  }

  /** The value of a parameter; an empty one counts as absent, two are refused. */
  one(name: string): string | undefined {
    const [value, second] = this.params.getAll(name);
    if (second !== undefined) throw invalid(name, 'may be given once');
    if (value === undefined || value === '') return undefined;
    if (value.length > MAX_VALUE_CHARS || value.includes('\0')) throw invalid(name, 'is too long or holds NUL');
    return value;
  }

  /** All values of `name[]` and `name`. */
  many(name: string): string[] {
    const values = [...this.params.getAll(`${name}[]`), ...this.params.getAll(name)].filter((value) => value !== '');
    if (values.length > MAX_REPEATS) throw invalid(name, `may repeat at most ${MAX_REPEATS} times`);
    for (const value of values) {
      if (value.length > MAX_VALUE_CHARS || value.includes('\0')) throw invalid(name, 'is too long or holds NUL');
    }
    return values;
  }

  /** Values that must be among `allowed`. */
  choices<const T extends string>(name: string, allowed: readonly T[]): T[] {
    return this.many(name).map((value) => {
      const found = allowed.find((choice) => choice === value);
      if (found === undefined) throw invalid(name, `must be one of ${allowed.join(', ')}`);
      return found;
    });
  }

  choice<const T extends string>(name: string, allowed: readonly T[]): T | undefined {
    const value = this.one(name);
    if (value === undefined) return undefined;
    const found = allowed.find((choice) => choice === value);
    if (found === undefined) throw invalid(name, `must be one of ${allowed.join(', ')}`);
    return found;
  }

  integer(name: string, bounds: { min: number; max: number }): number | undefined {
    const value = this.one(name);
    if (value === undefined) return undefined;
    const number = /^\d{1,15}$/.test(value) ? Number(value) : Number.NaN;
    if (!(number >= bounds.min && number <= bounds.max)) {
      throw invalid(name, `must be an integer from ${bounds.min} to ${bounds.max}`);
    }
    return number;
  }

  /** A page size: absent = `fallback`, above `max` is refused. */
  limit(fallback: number, max: number = LIMITS.listLimitMax): number {
    return this.integer('limit', { min: 1, max }) ?? fallback;
  }

  flag(name: string): boolean {
    return this.choice(name, ['true', 'false', '1', '0'])?.match(/true|1/) != null;
  }

  /** An RFC 3339 time, normalised to UTC with at most microseconds, as Postgres takes it. */
  time(name: string): string | undefined {
    // A plus sign that was not escaped arrives as a space.
    const value = this.one(name)?.replace(/ (\d{2}:?\d{2})$/, '+$1');
    if (value === undefined) return undefined;
    const [, year, month, day, fraction = ''] = RFC3339.exec(value) ?? [];
    const at = year === undefined ? Number.NaN : Date.parse(value);
    // Date.parse takes the 31st of February for a day in March.
    const isDay = new Date(Date.UTC(Number(year), Number(month) - 1, Number(day))).getUTCDate() === Number(day);
    if (!isDay || !(at >= FIRST_MS && at <= LAST_MS))
      throw invalid(name, 'must be an RFC 3339 time, for example 2026-01-31T12:00:00Z');
    return `${new Date(at).toISOString().slice(0, 19)}${fraction.slice(0, 7)}Z`;
  }

  /** Bounds of `name[gt|gte|lt|lte]`. */
  range(name: string): TimeRange {
    const range: TimeRange = {};
    for (const bound of ['gt', 'gte', 'lt', 'lte'] as const) {
      const at = this.time(`${name}[${bound}]`);
      if (at !== undefined) range[bound] = at;
    }
    return range;
  }

  /** Refuses parameters that cannot be given together with `name`. */
  refuseBeside(name: string, ...others: string[]): void {
    for (const other of others)
      if (this.one(other) !== undefined) throw invalid(name, `cannot be given together with "${other}"`);
  }

  /** Refuses parameters of features that the wire contract has and this platform has not built yet. */
  refuse(...names: string[]): void {
    for (const name of names) {
      if (this.one(name) !== undefined || this.many(name).length > 0) {
        throw new AppError(
          'invalid',
          'request.not-supported',
          `the filter "${name}" is not supported yet; leave it out`,
        );
      }
    }
  }
}

/** Time bounds of a list, RFC 3339. */
export interface TimeRange {
  gt?: string;
  gte?: string;
  lt?: string;
  lte?: string;
}
