import { describe, expect, it } from '@jest/globals';
import { Query } from './query.ts';

const time = (value: string): string | undefined => new Query(`/x?at=${encodeURIComponent(value)}`).time('at');

describe('a time in a query', () => {
  it.each([
    ['2026-01-31T12:00:00Z', '2026-01-31T12:00:00Z'],
    ['2026-01-31t12:00z', '2026-01-31T12:00:00Z'],
    ['2026-01-31T12:00:00.123456789+02:00', '2026-01-31T10:00:00.123456Z'],
    ['2024-02-29T23:59:59-23:59', '2024-03-01T23:58:59Z'],
    ['0001-01-01T00:00:00Z', '0001-01-01T00:00:00Z'],
    ['9999-12-31T23:59:59.999Z', '9999-12-31T23:59:59.999Z'],
  ])('%s is %s for Postgres', (given, meant) => {
    expect(time(given)).toBe(meant);
  });

  it('is read with a plus sign that was not escaped', () => {
    expect(new Query('/x?at=2026-01-31T12:00:00+02:00').time('at')).toBe('2026-01-31T10:00:00Z');
  });

  it.each([
    '2026-02-30T00:00:00Z',
    '2025-02-29T00:00:00Z',
    '2026-13-01T00:00:00Z',
    '2026-01-00T00:00:00Z',
    '2026-01-01T25:00:00Z',
    '2026-01-01T00:00:60Z',
    '2026-01-01T00:00:00+99:00',
    '0000-01-01T00:00:00Z',
    '0001-01-01T00:00:00+01:00',
    '9999-12-31T23:59:59-01:00',
    '2026-01-01',
    'infinity',
    'now',
  ])('%s is refused', (given) => {
    expect(() => time(given)).toThrow(expect.objectContaining({ code: 'request.invalid-query' }));
  });
});

describe('a query', () => {
  it('has lists in both spellings', () => {
    const query = new Query('/x?statuses[]=idle&statuses%5B%5D=running&statuses=terminated&statuses[]=');
    expect(query.choices('statuses', ['idle', 'running', 'terminated'])).toEqual(['idle', 'running', 'terminated']);
  });
  it('has no parameter twice, no page size out of bounds, and no feature that is not built', () => {
    const query = new Query('/x?limit=1&limit=2&size=0&files[]=1');
    expect(() => query.limit(20)).toThrow(/once/);
    expect(() => query.integer('size', { min: 1, max: 10 })).toThrow(/from 1 to 10/);
    expect(() => query.refuse('files')).toThrow(/"files" is not supported yet/);
  });
});
