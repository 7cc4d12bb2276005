import type { Metadata } from 'next';
import type { ReactNode } from 'react';
import { Providers } from '../components/providers.tsx';
import './globals.css';

export const metadata: Metadata = { title: { default: 'Holdfast', template: '%s · Holdfast' } };
// Every page carries a nonce of its own.
export const dynamic = 'force-dynamic';

export default function RootLayout({ children }: { children: ReactNode }) {
  return (
    <html lang="en">
      <body className="bg-page text-ink antialiased">
        <Providers>{children}</Providers>
      </body>
    </html>
  );
}
