import { describe, expect, it } from '@jest/globals';
import { Validator } from '@seriousme/openapi-schema-validator';
import { catalogueOperations } from '../operations/catalogue.operations.ts';
import { platformOperations } from '../operations/platform.operations.ts';
import { sandboxOperations } from '../operations/sandbox.operations.ts';
import { sessionOperations } from '../operations/session.operations.ts';
import { openApiDocument } from './openapi.ts';

interface Document {
  readonly paths: Record<
    string,
    Record<string, { parameters: { in: string; name: string; schema: object }[]; responses: Record<string, object> }>
  >;
  readonly components: { readonly schemas: Record<string, object> };
}
// What the operations would work with is not needed to describe them.
const operations = [
  ...catalogueOperations({} as never),
  ...sessionOperations({} as never),
  ...sandboxOperations({} as never),
  ...platformOperations({} as never),
];
const document = openApiDocument(operations) as Document;

describe('the OpenAPI document', () => {
  it('is valid OpenAPI 3.1, and every reference in it leads somewhere', async () => {
    const validator = new Validator();
    expect(await validator.validate(structuredClone(document) as never)).toEqual({ valid: true });
    expect(validator.version).toBe('3.1');
    expect(() => validator.resolveRefs()).not.toThrow();
    for (const [, target] of JSON.stringify(document).matchAll(/"\$ref":"#\/([^"]+)"/g)) {
      const found = (target ?? '')
        .split('/')
        .reduce<unknown>((part, key) => (part as Record<string, unknown>)?.[key], document);
      expect([target, typeof found]).toEqual([target, 'object']);
    }
  });

  it('describes each operation: answers, failures, and what its parameters are', () => {
    for (const { path, method, id, query = [] } of operations) {
      const described = document.paths[path.replace(/:(\w+)/g, '{$1}')]?.[method.toLowerCase()];
      expect(described).toMatchObject({ operationId: id, responses: { 200: { content: expect.anything() } } });
      expect(Object.keys(described?.responses ?? {})).toEqual(
        expect.arrayContaining(['400', '401', '404', '429', 'default']),
      );
      const parameters = described?.parameters ?? [];
      expect(parameters.filter((one) => one.in === 'query').map((one) => one.name)).toEqual(query);
      for (const { schema } of parameters) expect(schema).toHaveProperty('type');
    }
    expect(new Set(operations.map(({ id }) => id)).size).toBe(operations.length);
    expect(document.components.schemas['Session']).toMatchObject({ type: 'object', additionalProperties: false });
  });
});
