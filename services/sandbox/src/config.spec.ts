import { describe, expect, it } from '@jest/globals';
import { containerEnv } from './config.ts';

describe('CONTAINER_ENV_', () => {
  it('gives every sandbox plain configuration', () => {
    expect(
      containerEnv({
        CONTAINER_ENV_COLOUR: 'teal',
        CONTAINER_ENV_HF_HOME: '/x',
        CONTAINER_ENV_LANG: 'de',
        OTHER: 'no',
      }),
    ).toEqual({ env: { COLOUR: 'teal', HF_HOME: '/x', LANG: 'de' }, refused: [] });
  });

  it('refuses what would change how the sandbox works, and what is no name', () => {
    const names = [
      ...['PATH', 'HOME', 'NODE_OPTIONS', 'LD_PRELOAD', 'LD_LIBRARY_PATH', 'HOLDFAST_CALL', 'BASH_ENV', 'ENV'],
      ...['SHELLOPTS', 'HTTP_PROXY', 'https_proxy', 'ALL_PROXY', 'no_proxy', 'A-B', '1A', ''],
    ];
    expect(containerEnv(Object.fromEntries(names.map((name) => [`CONTAINER_ENV_${name}`, 'v'])))).toEqual({
      env: {},
      refused: names,
    });
  });
});
