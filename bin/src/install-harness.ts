import { prepareHarnesses } from './harnesses.ts';

/** `install-harness <name> <folder>`: puts a harness into `<folder>/harnesses`, for an image. */
const [name = '', folder = ''] = process.argv.slice(2);
if (name === '' || folder === '') throw new Error('usage: install-harness <name> <folder>');
await prepareHarnesses(name, process.env, folder, (line) => console.log(line));
